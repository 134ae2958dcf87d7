"""Every error of the farm; each class says whether a retry can help and how a process ends."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self


class FarmError(Exception):
    """Anything the farm refuses or fails to do.

    ``message`` says what is wrong with which thing, ``hint`` the way out, ``field`` the input it
    is about, ``line`` and ``column`` where that input stood in a file (both count from 1).
    """

    code: ClassVar[str] = "farm"
    status: ClassVar[int] = 500  # HTTP
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        hint: str | None = None,
        line: int | None = None,
        column: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.hint = hint
        self.line = line
        self.column = column

    def __str__(self) -> str:
        where = f"line {self.line}, column {self.column or 1}: " if self.line is not None else ""
        field = f" {self.field}" if self.field else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"error[{self.code}]{field}: {where}{self.message}{hint}"

    def at(self, line: int, column: int = 1) -> Self:
        """The same error, placed in a file."""
        self.line, self.column = line, column
        return self

    def to_dict(self) -> dict[str, Any]:
        facts = {
            "code": self.code,
            "message": _unicode(self.message),
            "field": self.field and _unicode(self.field),
            "hint": self.hint and _unicode(self.hint),
            "line": self.line,
            "column": self.column,
            "retryable": self.retryable,
        }
        return {name: value for name, value in facts.items() if value is not None}


def _unicode(text: str) -> str:
    """A key of the user's may hold half a surrogate pair, which no answer could carry."""
    return text.encode(errors="backslashreplace").decode()


class InvalidInput(FarmError):
    """The user's input is wrong; sent again unchanged it fails again."""

    code = "invalid"
    status = 422
    exit_code = 2


class TooLarge(InvalidInput):
    """The input is larger than the farm takes."""

    code = "too_large"
    status = 413


class InvalidCheckpoint(InvalidInput):
    """A checkpoint is missing, incomplete, damaged or of a kind the farm refuses to load."""

    code = "checkpoint"


class NotFound(FarmError):
    """No such thing, or it belongs to someone else."""

    code = "not_found"
    status = 404
    exit_code = 2


class Conflict(FarmError):
    """The thing exists already with other content, or its state does not allow the call."""

    code = "conflict"
    status = 409
    exit_code = 2


class NotAllowed(FarmError):
    """The API key is missing, unknown, expired or lacks the scope."""

    code = "not_allowed"
    status = 401
    exit_code = 6


class OverQuota(FarmError):
    """The tenant is over its quota; it may try again later."""

    code = "over_quota"
    status = 429
    retryable = True


class Unavailable(FarmError):
    """A part of the farm does not answer; it may later."""

    code = "unavailable"
    status = 503
    exit_code = 5
    retryable = True


class QueueFull(Unavailable):
    """Redis has no memory left for new work; leasing and completing go on."""

    code = "queue_full"


class StoreError(Unavailable):
    """The object store refused or failed a call."""

    code = "store"


class JobFailed(FarmError):
    """More pictures of the job failed than it allows."""

    code = "job_failed"
    status = 409


class JobCancelled(FarmError):
    """The job was cancelled before it was done."""

    code = "job_cancelled"
    status = 409
    exit_code = 3


class TimedOut(FarmError):
    """The caller's own time limit passed; the work continues."""

    code = "timed_out"
    status = 504
    exit_code = 4
    retryable = True


class RenderError(FarmError):
    """One row cannot be rendered; its neighbours are not affected."""

    code = "render"


class OutOfMemory(FarmError):
    """The batch did not fit into the device's memory; a smaller one may."""

    code = "out_of_memory"
    retryable = True


class LeaseLost(FarmError):
    """The caller no longer holds the task; what it did is not recorded."""

    code = "lease_lost"
    status = 409


class RejectedRender(NamedTuple):
    """A render that was refused; others of its job may have been taken."""

    render: int  # index in the job, from 0
    error: FarmError  # its line and column say where the render stood in its file or list
    file: str | None = None  # where several files went together

    @property
    def line(self) -> int | None:
        return self.error.line

    @property
    def column(self) -> int:
        return self.error.column or 1

    def __str__(self) -> str:
        return str(self.error)

    def to_dict(self) -> dict[str, Any]:
        return {"render": self.render, **self.error.to_dict()}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "RejectedRender":
        return cls(int(facts["render"]), from_dict(facts))


class AllRejected(InvalidInput):
    """Not one render of a submission was taken, so there is no job.

    It has the code, status and text of the first refusal unless it is given a text of its own.
    """

    def __init__(
        self, rejected: Sequence[RejectedRender], message: str | None = None, **facts: Any
    ) -> None:
        if message is None:
            first = rejected[0].error
            message = first.message
            facts = {name: getattr(first, name) for name in ("field", "hint", "line", "column")}
            self.code = first.code  # type: ignore[misc]
            self.status = first.status  # type: ignore[misc]
        super().__init__(message, **facts)
        self.rejected = tuple(rejected)

    def __reduce__(self) -> tuple[Any, ...]:
        """An exception is made again from its text alone, which is the second argument here; a
        pool of processes would wait for ever for one that cannot be read."""
        return type(self), (self.rejected, self.message), vars(self)


CODES: Mapping[str, type[FarmError]] = {
    kind.code: kind
    for kind in (
        FarmError, InvalidInput, TooLarge, InvalidCheckpoint, NotFound, Conflict, NotAllowed,
        OverQuota, Unavailable, QueueFull, StoreError, JobFailed, JobCancelled, TimedOut,
        RenderError, OutOfMemory, LeaseLost,
    )
}  # fmt: skip


def from_dict(facts: Mapping[str, Any]) -> FarmError:
    """The error that ``to_dict`` described; an unknown code becomes a plain ``FarmError``."""
    kind = CODES.get(str(facts.get("code")), FarmError)
    return kind(
        str(facts.get("message", "no message")),
        field=facts.get("field"),
        hint=facts.get("hint"),
        line=facts.get("line"),
        column=facts.get("column"),
    )
