"""``asr chat``: a conversation in the terminal, every turn routed anew and said aloud."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from asr.cli.generate import (
    AdapterOption,
    LengthOption,
    SeedOption,
    TemperatureOption,
    TopPOption,
    headline,
    sampling_fields,
    set_seed,
)
from asr.cli.options import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    ModelArgument,
    QuantisationOption,
    TrustOption,
    load_model,
)
from asr.cli.output import fail, stdout
from asr.errors import AdapterError, DataError, did_you_mean, unknown

if TYPE_CHECKING:
    from asr.model.routed_model import RoutedModel

COMMANDS = {
    "/adapter NAME": "answer with this domain's adapter, or base; auto routes again",
    "/reset": "forget the conversation",
    "/help": "show this",
    "/quit": "leave, as Ctrl-D does",
}


def chat(
    model: ModelArgument,
    adapter: AdapterOption = "auto",
    max_new_tokens: LengthOption = 256,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantisation: QuantisationOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    r"""Talk with the routed model; each turn shows where it was routed.

    Ctrl-C stops an answer, pressed twice it leaves, as /quit and Ctrl-D do.

    \b
    asr chat MODEL
    asr chat MODEL --adapter legal --temperature 0.7
    """
    sampling = sampling_fields(temperature, top_p)
    routed = load_model(
        model,
        adapter=adapter,
        base=base,
        device=device,
        dtype=dtype,
        quantisation=quantisation,
        trust_remote_code=trust_remote_code,
    )
    set_seed(seed)
    talk = Chat(routed, stdout(), max_new_tokens, sampling)
    talk.choose(adapter)
    talk.run()


class Chat:
    """A conversation.

    Args:
        model: who answers.
        console: where it is shown.
        max_new_tokens: longest answer.
        sampling: generation fields.
    """

    def __init__(
        self, model: RoutedModel, console: Console, max_new_tokens: int, sampling: dict[str, Any]
    ) -> None:
        self.model = model
        self.console = console
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling
        self.adapter = "auto"
        self.turns: list[dict[str, str]] = []
        self._interrupted = False

    def run(self) -> None:
        """Read lines until the user leaves."""
        names = ", ".join(self.model.domains)
        self.console.print(f"domains: {names}; /help shows the commands, /quit leaves")
        while True:
            try:
                line = self._read()
                if line is None:
                    return
                self._interrupted = False
                if line.strip() and self._obey(line.strip()):
                    return
            except KeyboardInterrupt:
                self.console.print()
                if self._interrupted:
                    return
                self._interrupted = True
                self.console.print("(Ctrl-C again or Ctrl-D leaves)", style="dim")

    def choose(self, name: str) -> None:
        """Answer with this adapter from now on.

        Raises:
            AdapterError: there is none of that name.
        """
        choices = ["auto", "base", *self.model.domains]
        if name not in choices:
            raise AdapterError(unknown("adapter", name, choices))
        self.adapter = name

    def answer(self, text: str) -> None:
        """Answer a message, keeping what was said; Ctrl-C keeps what came until then.

        Raises:
            DataError: the conversation does not fit the context any more.
            KeyboardInterrupt: Ctrl-C.
        """
        self.turns.append({"role": "user", "content": text})
        spoken = ""
        try:
            decision, adapter, pieces = self.model.stream(
                self.turns,
                adapter=self.adapter,
                max_new_tokens=self.max_new_tokens,
                **self.sampling,
            )
            self.console.print(Text(f"[{headline(adapter, decision)}]", style="cyan"))
            try:
                for piece in pieces:
                    spoken += piece
                    self.console.print(Text(piece), end="", soft_wrap=True)
            finally:
                close = getattr(pieces, "close", None)
                if close is not None:
                    close()  # the generation ends with its reader
            self.console.print()
        finally:
            if spoken.strip():
                self.turns.append({"role": "assistant", "content": spoken})
            else:
                self.turns.pop()

    # -- inside ----------------------------------------------------------------------------------

    def _read(self) -> str | None:
        """Return the next line, None at the end of the input."""
        if sys.stdin.isatty():
            import readline  # noqa: F401  line editing and history for input()
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                self.console.print()
            return None

    def _obey(self, line: str) -> bool:
        """Follow a command or answer a message; return whether to leave."""
        try:
            if line.startswith("/") and not line.startswith("//"):
                return self._command(*line.split(maxsplit=1))
            self.answer(line.removeprefix("/"))
        except DataError as error:
            fail(f"{error}; /reset starts a new conversation")
        except AdapterError as error:
            fail(str(error))
        return False

    def _command(self, name: str, argument: str = "") -> bool:
        if name in ("/quit", "/exit"):
            return True
        if name == "/help":
            for command, meaning in COMMANDS.items():
                self.console.print(f"{command:15}{meaning}")
            self.console.print("//...          a message that starts with /")
        elif name == "/reset":
            self.turns.clear()
            self.console.print("the conversation is forgotten", style="dim")
        elif name == "/adapter" and argument:
            self.choose(argument)
            self.console.print(f"adapter: {self.adapter}", style="dim")
        elif name == "/adapter":
            choices = ", ".join(["auto", "base", *self.model.domains])
            self.console.print(f"adapter: {self.adapter}; there are: {choices}", style="dim")
        else:
            known = [command.split()[0] for command in COMMANDS]
            near = did_you_mean(name, known)
            fail(f"unknown command '{name}'{near}; there are: {', '.join(known)}")
        return False
