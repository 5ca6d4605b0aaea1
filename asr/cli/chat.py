"""``asr chat``: a conversation in the terminal, every turn routed anew and said aloud."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
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
    QuantisationOption,
    TrustOption,
    load_model,
    refuse_given,
)
from asr.cli.output import fail, stdout
from asr.errors import AdapterError, AsrError, ConfigError, DataError, did_you_mean, unknown

if TYPE_CHECKING:
    from asr.router import Decision

COMMANDS = {
    "/adapter NAME": "answer with this domain's adapter, or base; auto routes again",
    "/reset": "forget the conversation",
    "/help": "show this",
    "/quit": "leave, as Ctrl-D does",
}

_OF_THE_SERVER = ("base", "device", "dtype", "quantisation", "trust_remote_code")


def chat(
    context: typer.Context,
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL", help="Folder that asr train wrote; or --url.", show_default=False
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="Talk with a running asr serve in place of MODEL.",
            show_default=False,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="ASR_API_KEY",
            help="The server's API key.",
            show_default=False,
        ),
    ] = None,
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
    r"""Talk with the routed model, or a server of it; each turn shows where it was routed.

    Ctrl-C stops an answer, pressed twice it leaves, as /quit and Ctrl-D do.

    \b
    asr chat MODEL
    asr chat MODEL --adapter legal --temperature 0.7
    asr chat --url http://127.0.0.1:8000
    """
    if (model is None) == (url is None):
        what = "what to talk with" if model is None else "MODEL or --url, not both"
        raise ConfigError(f"give {what}: asr chat MODEL, or asr chat --url http://127.0.0.1:8000")
    sampling = sampling_fields(temperature, top_p)
    if url is not None:
        refuse_given(context, _OF_THE_SERVER, "--url", "that is the server's to decide")
        from asr.cli.chat_server import ServerModel

        with closing(ServerModel(url, api_key, seed)) as server:
            _talk(server, adapter, max_new_tokens, sampling)
        return
    assert model is not None
    refuse_given(context, ["api_key"], "MODEL", "only a server asks for it")
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
    _talk(routed, adapter, max_new_tokens, sampling)


class Partner(Protocol):
    """Who answers: a routed model in this process, or one behind a server."""

    @property
    def domains(self) -> Sequence[str]:
        """Names of the domains."""
        ...

    def stream(
        self,
        prompt: Sequence[Mapping[str, str]],
        *,
        adapter: str,
        max_new_tokens: int,
        **generation: Any,
    ) -> tuple[Decision | None, str, Iterator[str]]:
        """Return the decision, the adapter's name and the answer, piece by piece."""
        ...


class Chat:
    """A conversation.

    Args:
        model: who answers.
        console: where it is shown.
        max_new_tokens: longest answer.
        sampling: generation fields.
    """

    def __init__(
        self, model: Partner, console: Console, max_new_tokens: int, sampling: dict[str, Any]
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
            AsrError: a server does not answer, see :class:`asr.cli.chat_server.ServerModel`.
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
            except AsrError:
                self.console.print()  # what went wrong stands on a line of its own
                raise
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
        except AsrError as error:
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


def _talk(model: Partner, adapter: str, max_new_tokens: int, sampling: dict[str, Any]) -> None:
    talk = Chat(model, stdout(), max_new_tokens, sampling)
    talk.choose(adapter)
    talk.run()
