"""Reading foreign pickles as data: nothing that a file names is imported or called (facts 10.2).

Whatever a file constructs becomes an inert Record that keeps what it was given. The opcodes of Python's own
unpickler that make plain data are used as they are; those that would import, call, set attributes or reach
outside of the file are replaced or refused. What a hostile file can make us do is bounded by MOST_OPCODES,
as no single opcode costs more than the bytes that it takes from the file.
"""

import pickle
from collections.abc import Callable, Iterable

MOST_OPCODES = 2_000_000
LONGEST_NAME = 500  # characters of a global
LARGE_BYTES = 1024  # from here on bytes stay where they are in the file

Bytes = bytes | memoryview


class Global:
    """A name that the file would import."""

    __slots__ = ("origin",)

    def __init__(self, origin: str) -> None:
        self.origin = origin


class Record:
    """An object of a class that is not loaded, or the result of a function that is not called.

    `origin` is the dotted name in the file, `arguments` what it was called with; `state`, `items` and `parts`
    what it was given afterwards as its attributes, as a dict and as a list.
    """

    __slots__ = ("arguments", "items", "origin", "parts", "state")

    def __init__(self, origin: str, arguments: tuple = ()) -> None:
        self.origin, self.arguments = origin, arguments
        self.state: object = {}
        self.items: dict = {}
        self.parts: list = []

    def attributes(self) -> dict:
        """The object's `__dict__`."""
        state = self.state
        if isinstance(state, tuple) and state:
            # The attributes of an object that has slots as well are a pair of dicts.
            state = state[0]
        return state if isinstance(state, dict) else {}


def _put(target: dict, pairs: Iterable[tuple[object, object]]) -> None:
    """Puts pairs into a dict; those with keys that are not simple are left out.

    What we look for has simple keys; hashing others would let one big key cost its length as often as it is
    used.
    """
    for key, value in pairs:
        small = isinstance(key, int) and -(1 << 63) <= key < 1 << 64
        if key is None or isinstance(key, str | bool) or small:
            target[key] = value
        elif isinstance(key, bytes) and len(key) < LARGE_BYTES:
            target[key.decode("latin1")] = value


def _ordered_dict(arguments: tuple) -> dict:
    made: dict = {}
    entries = _only(arguments)
    if isinstance(entries, list | tuple):
        # Each entry is a pair, in files of Python 2 as a list.
        rows = [entry for entry in entries if isinstance(entry, list | tuple)]
        _put(made, (row for row in rows if len(row) == 2))
    return made


def _reconstructor(arguments: tuple) -> Record:
    kind = _only(arguments)
    made = Record(kind.origin if isinstance(kind, Global) else "")
    if len(arguments) > 2 and isinstance(arguments[2], dict):
        made.items = arguments[2]
    return made


def _only(arguments: tuple) -> object:
    return arguments[0] if arguments else []


# The functions that are called: ours, which make plain data of their arguments. Python 2 has two of the
# modules under other names.
_FUNCTIONS: dict[str, Callable[[tuple], object]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _only,
    "builtins.list": _only,
    "builtins.tuple": _only,
    "builtins.set": _only,
    "builtins.frozenset": _only,
    "__builtin__.list": _only,
    "__builtin__.tuple": _only,
    "__builtin__.set": _only,
    "__builtin__.frozenset": _only,
    "copyreg._reconstructor": _reconstructor,
    "copy_reg._reconstructor": _reconstructor,
}


class _Reader(pickle._Unpickler):
    """Python's unpickler, in what makes plain data. Sets are read as lists.

    It is the one written in Python, not the C one: that one allocates whatever memo index a file claims to
    use, and cannot leave large bytes in the file.
    """

    pop_mark: Callable[[], list]  # which the stubs of the library leave out

    def __init__(
        self,
        data: Bytes | bytearray,
        start: int,
        persistent: Callable[[object], object] | None,
        most: int,
    ) -> None:
        self.view = memoryview(data)
        self.place = start
        self.persistent = persistent
        self.left = most
        # What the handlers of Python's own unpickler look at.
        self.memo: dict[int, object] = {}
        self.encoding = "latin1"
        self.errors = "strict"
        self.proto = 0
        self.text_left = 2 * len(self.view)

    def load(self) -> object:
        self.metastack: list = []
        self.stack: list = []
        self.append = self.stack.append
        while (code := self.read(1)) != pickle.STOP:
            self.left -= 1
            if self.left < 0:
                raise ValueError("it has more parts than it can honestly have")
            handler = _HANDLERS.get(code[0])
            if handler is None:
                raise ValueError(f"opcode {code!r} at byte {self.place - 1} is not accepted")
            handler(self)
        return self.stack.pop()

    def read(self, count: int) -> bytes:
        return bytes(self.part(count))

    def part(self, count: int) -> memoryview:
        start = self.place
        self.place += count
        if count < 0 or self.place > len(self.view):
            raise ValueError("it is cut off")
        return self.view[start : self.place]

    def readline(self) -> bytes:
        window = 256
        while True:
            line = bytes(self.view[self.place : self.place + window])
            end = line.find(b"\n") + 1
            if end:
                self.place += end
                return line[:end]
            if self.place + window >= len(self.view):
                raise ValueError("it is cut off")
            window *= 4

    def load_frame(self) -> None:
        # A frame is a hint for buffered reading.
        self.read(8)

    def load_bytes(self, width: int) -> None:
        count = int.from_bytes(self.read(width), "little")
        data = self.part(count)
        self.append(data if count >= LARGE_BYTES else bytes(data))

    def load_name(self) -> None:
        module = self.readline()[:-1]
        name = self.readline()[:-1]
        self._name(module.decode(), name.decode())

    def load_stack_name(self) -> None:
        name = self.stack.pop()
        module = self.stack.pop()
        self._name(module, name)

    def _name(self, module: object, name: object) -> None:
        named = isinstance(module, str) and isinstance(name, str)
        if not named or len(module) > LONGEST_NAME or len(name) > LONGEST_NAME:
            raise ValueError("it names something that has no proper name")
        self.append(Global(f"{module}.{name}"))

    def load_call(self) -> None:
        arguments = self.stack.pop()
        function = self.stack.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError("it calls something that has no name")
        if function.origin == "_codecs.encode":
            self.append(self._encoded(*arguments))
        elif function.origin in _FUNCTIONS:
            if arguments and isinstance(arguments[0], list | tuple):
                self.left -= len(arguments[0])
            self.append(_FUNCTIONS[function.origin](arguments))
        else:
            self.append(Record(function.origin, arguments))

    def load_call_keywords(self) -> None:
        self.stack.pop()
        self.load_call()

    def _encoded(self, text: str, encoding: str = "") -> bytes:
        if encoding != "latin1" or not isinstance(text, str):
            raise ValueError("bytes that are encoded as anything but latin1 are not accepted")
        self.text_left -= len(text)
        if self.text_left < 0:
            raise ValueError("it decodes the same text over and over")
        return text.encode("latin1")

    def load_state(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict):
            # An ordered dict may have attributes, which are of no use.
            raise ValueError("it gives a state to something that can have none")

    def load_persistent(self) -> None:
        if self.persistent is None:
            raise ValueError("it refers to objects outside of itself")
        self.append(self.persistent(self.stack.pop()))

    def load_empty_list(self) -> None:
        self.append([])

    def load_list(self) -> None:
        # In two statements, as popping a mark changes what `append` is.
        items = self.pop_mark()
        self.append(items)

    def load_dict(self) -> None:
        made: dict = {}
        _put(made, self._popped_pairs())
        self.append(made)

    def load_item(self) -> None:
        self._extend([self.stack.pop()])

    def load_items(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list) -> None:
        target = self.stack[-1]
        parts = target.parts if isinstance(target, Record) else target
        if not isinstance(parts, list):
            raise ValueError("it appends to something that is no list")
        parts.extend(items)

    def load_pair(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._update([(key, value)])

    def load_pairs(self) -> None:
        self._update(self._popped_pairs())

    def _popped_pairs(self) -> Iterable[tuple[object, object]]:
        items = self.pop_mark()
        keys = items[::2]
        return zip(keys, items[1::2], strict=True)

    def _update(self, pairs: Iterable[tuple[object, object]]) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, Record) else target
        if not isinstance(items, dict):
            raise ValueError("it puts an item into something that is no dict")
        _put(items, pairs)


# fmt: off
_PLAIN = [
    "PROTO", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1",
    "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "EMPTY_DICT", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
]
# fmt: on
_OURS: dict[str, Callable[[_Reader], None]] = {
    "FRAME": _Reader.load_frame,
    "SHORT_BINBYTES": lambda reader: reader.load_bytes(1),
    "BINBYTES": lambda reader: reader.load_bytes(4),
    "BINBYTES8 BYTEARRAY8": lambda reader: reader.load_bytes(8),
    "GLOBAL": _Reader.load_name,
    "STACK_GLOBAL": _Reader.load_stack_name,
    "REDUCE NEWOBJ": _Reader.load_call,
    "NEWOBJ_EX": _Reader.load_call_keywords,
    "BUILD": _Reader.load_state,
    "BINPERSID": _Reader.load_persistent,
    "EMPTY_LIST EMPTY_SET": _Reader.load_empty_list,
    "LIST FROZENSET": _Reader.load_list,
    "DICT": _Reader.load_dict,
    "APPEND": _Reader.load_item,
    "APPENDS ADDITEMS": _Reader.load_items,
    "SETITEM": _Reader.load_pair,
    "SETITEMS": _Reader.load_pairs,
}


def _handlers() -> dict[int, Callable[[_Reader], None]]:
    """What to do at each opcode that is accepted, by its byte."""
    handlers = {}
    for name in _PLAIN:
        code = getattr(pickle, name)[0]
        handlers[code] = pickle._Unpickler.dispatch[code]
    for names, handler in _OURS.items():
        for name in names.split():
            handlers[getattr(pickle, name)[0]] = handler
    return handlers


_HANDLERS = _handlers()


def read_part(
    data: Bytes | bytearray,
    start: int = 0,
    persistent: Callable[[object], object] | None = None,
    most: int = MOST_OPCODES,
) -> tuple[object, int]:
    """The object in the pickle that begins at byte `start`, and where the pickle ends.

    Bytes of LARGE_BYTES or more are views of `data`. `persistent` says what a persistent identifier stands
    for; without it they are refused. Raises ValueError for whatever is not readable.
    """
    reader = _Reader(data, start, persistent, most)
    try:
        return reader.load(), reader.place
    except Exception as error:
        # A damaged pickle can raise nearly anything.
        raise ValueError(f"not a readable pickle ({error})") from error
