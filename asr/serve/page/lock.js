// The dialog that asks for the API key.

const dialog = document.getElementById("lock");
const field = document.getElementById("key");
let asked = null;

/** Return the key that is given, or null where nobody gives one; several askers share a dialog. */
export function askForKey(wrong) {
  asked ??= new Promise((answer) => {
    document.getElementById("lock-why").textContent = wrong
      ? "That key was not accepted."
      : "This server asks for a key.";
    field.value = "";
    const finish = (key) => {
      asked = null;
      dialog.close();
      answer(key);
    };
    document.getElementById("unlock").onsubmit = (event) => {
      event.preventDefault();
      finish(field.value.trim() || null);
    };
    document.getElementById("cancel").onclick = () => finish(null);
    dialog.oncancel = (event) => {
      event.preventDefault();
      finish(null);
    };
    dialog.showModal();
    field.focus();
  });
  return asked;
}
