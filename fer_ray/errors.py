"""Every exception that fer_ray raises on purpose; each message is one sentence that names the thing and what to do."""

from typing import Any

EXIT_DONE = 0
EXIT_FAILED = 1  # try again
EXIT_USAGE = 2  # nothing was written
EXIT_TOO_MANY_FAILED = 3  # done, but too many images failed
EXIT_INTERRUPTED = 130  # 128 and the number of the signal, as shells do
EXIT_TERMINATED = 143


class FerRayError(Exception):
    """The root: a job that meets one prints its sentence and ends with `exit_code`."""

    exit_code = EXIT_FAILED


class UsageError(FerRayError):
    """What was asked for cannot be done as asked: a missing folder, a wrong setting, a broken bundle. Nothing was written."""

    exit_code = EXIT_USAGE


class BundleError(UsageError):
    """A model bundle that is missing, broken, altered, or newer than this code."""


class DatasetError(UsageError):
    """A data set that cannot be read as one of the known layouts."""


class MissingSplitError(DatasetError):
    """A data set without the split that was asked for; `splits` are those that it has."""

    def __init__(self, message: str, splits: tuple[str, ...]) -> None:
        super().__init__(message, splits)
        self.splits = splits

    def __str__(self) -> str:
        return str(self.args[0])


class TrainingError(FerRayError):
    """A training that cannot go on; what it has reached so far is kept."""


class ImageError(FerRayError):
    """One image that gives no pixels; `status` is what its row in `images` says."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class StorageError(FerRayError):
    """A store or file system that cannot be used as it stands: wrong credentials, no such bucket, a full disk."""


class AccessError(StorageError):
    """One file or object that cannot be read or written; `reason` is a word or two."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, reason)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # a process that labels hands it on; subclasses are made of other arguments
        return _remake, (type(self), *self.args)

    def __str__(self) -> str:
        return str(self.args[0])


class SlowError(AccessError):
    """One file or object whose bytes come too slowly to wait for."""

    def __init__(self, uri: str, size: int, seconds: float) -> None:
        reason = f"only {size:,} bytes came in {seconds:.0f} s"
        super().__init__(f"{uri} cannot be read ({reason}): check the store and the network.", reason)


def _remake(kind: type[AccessError], message: str, reason: str) -> AccessError:
    error = kind.__new__(kind)
    AccessError.__init__(error, message, reason)
    return error


class OutageError(AccessError):
    """The store or file system did not answer as one does: no connection, overloaded, broken off. It may do so in a while."""


class DeniedError(AccessError):
    """The store denies access. It may allow it in a while: rights and keys take time to reach all of a store."""


class ChangedError(AccessError):
    """An object that is another one than was listed."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"{uri} changed since it was listed: start a new run.", "it changed since it was listed")

    @classmethod
    def check(cls, uri: str, listed: str | None, answered: str | None) -> None:
        """Compare two etags, where both are known; a weak one does not tell that the bytes are the same.

        Raises:
            ChangedError: they differ.
        """
        known = listed and answered and not answered.startswith("W/")
        if known and (answered or "").strip('"') != listed:
            raise cls(uri)


class TooLargeError(StorageError):
    """More bytes than the caller wants to hold; none were read."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size

    def __str__(self) -> str:
        return f"The file has {self.size:,} bytes, more than is read at once."


class MemoryShortError(FerRayError):
    """A machine without the memory that the work takes."""


class PublishError(FerRayError):
    """Staged results that do not match the manifest: nothing was published; or a catalog that cannot be told of what was."""
