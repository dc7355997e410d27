"""The frames of a film by the time they are shown, one at a time, upright and in 8 bits.

FFmpeg (PyAV) does the work: of the containers and codecs that are named here, from a file object, with every protocol switched off, so
that no film opens an address or another file. Sound, subtitles, attachments and data are not looked at.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from fer_ray.errors import ImageError
from fer_ray.schema import Status
from fer_ray.typing import UInt8Array
from fer_ray.video.file import FilmFile, check_kind
from fer_ray.vision.decode import DecodedImage

if TYPE_CHECKING:
    import av

CONTAINERS = "mov,matroska,avi,mpeg,mpegts"
_MODERN = ("av1", "h264", "hevc", "libdav1d", "libvpx", "libvpx-vp9", "prores", "theora", "vp8", "vp9")
_OLD = ("dnxhd", "dvvideo", "h263", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "vc1")
CODECS = frozenset((*_MODERN, *_OLD))
MAX_MEGAPIXELS = 36.0  # of a frame, 8K: a decoder holds up to 17 of them
ALL_FRAMES = Fraction(1000)  # a second, as times are in milliseconds
SECONDS_PER_FRAME = 20.0  # to decode one: then the process is ended, and another looks at the film in a sandbox
SLOWEST = 60.0  # times slower than it is shown
SECONDS_AT_LEAST = 120.0  # for a stretch of whatever length
STEPS_BACK = (0.0, 10.0, 60.0, 600.0)  # seconds before what is wanted, where a film's index leads behind it
WITHOUT_INDEX = ("mpeg", "mpegts")  # where the first times after a jump are guesses: never the first of these steps
BREAK_SECONDS = 1.0  # that the picture may end before its track says
LOOSE_BREAK = 0.1  # the same as a share of the film, where only the longest of all tracks is known
SCENE_SIDE = 32  # pixels of the small picture whose colours tell one scene from another
SCENE_BINS = 4  # of each colour

_HDR = (16, 18)  # transfers of HDR10 and HLG, as H.273 numbers them
_BT709 = 1
_REDUCTIONS = (2, 4, 8)
_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


@dataclass(frozen=True)
class FilmFacts:
    """What a film says of itself: its length as far as it is known, its upright size, and frames a second on average."""

    seconds: float | None
    width: int
    height: int
    rate: float


@dataclass(frozen=True)
class Frame:
    """A frame with its time and the colours of its scene: (64,) uint8, shares of 4 x 4 x 4 colours that add up to about 255."""

    time_ms: int
    image: DecodedImage
    scene: bytes


class Film:
    """A film that is open for reading its frames.

    Args:
        file: Its bytes.
        max_megapixels: Larger pictures are not decoded.
        enough_pixels: As in `vision.decode.decode`.

    Raises:
        ImageError: it cannot be read, is no film, has no picture that can be decoded, or too large ones.
        StorageError: the store cannot be used.
    """

    def __init__(self, file: FilmFile, max_megapixels: float, enough_pixels: int) -> None:
        check_kind(file.entry)
        self.file, self.enough_pixels = file, enough_pixels
        self.max_pixels = min(max_megapixels, MAX_MEGAPIXELS) * 1e6
        self._frames: Iterator[tuple[int, Any]] | None = None
        self._waiting: tuple[int, Any] | None = None  # the frame that ended the stretch before
        self._end_ms = 0  # of that stretch
        self._rate = ALL_FRAMES
        self.damages = 0
        self.last_ms = -1
        self._container, self._stream = self._open()

    @property
    def facts(self) -> FilmFacts:
        stream, seconds = self._stream, self._container.duration
        context = stream.codec_context
        size = (context.width, context.height)
        if self._is_exact:
            length: float | None = float(stream.duration * stream.time_base)
        else:
            length = seconds / 1e6 if seconds and seconds > 0 else None
        return FilmFacts(length, *size, float(stream.average_rate or stream.guessed_rate or 25))

    @property
    def _is_exact(self) -> bool:
        return bool(self._stream.duration and self._stream.duration > 0)

    def frames(self, start_ms: int, end_ms: int | None, rate: Fraction) -> Iterator[Frame]:
        """The first frame of each of `rate` slots a second, of those that are shown from `start_ms` to before `end_ms`.

        Which frames these are depends on nothing else, so that stretches that follow each other give what the whole gives.

        Raises:
            ImageError: the film breaks off, is damaged (which its last frame comes before), or cannot be read.
            StorageError: the store cannot be used.
        """
        import av

        last_slot, began, self._rate = -1, time.monotonic(), rate
        length = self.facts.seconds
        until = (end_ms if end_ms is not None else int((length or 0) * 1000)) - start_ms
        limit = SECONDS_AT_LEAST + SLOWEST * max(0, until) / 1000
        try:
            for time_ms, frame in self._from(start_ms):
                if end_ms is not None and time_ms >= end_ms:
                    self._waiting, self._end_ms = (time_ms, frame), end_ms
                    break
                slot = _slot(time_ms, rate)
                if slot > last_slot:
                    last_slot = slot
                    yield self._picture(time_ms, frame)
                if time.monotonic() - began > limit:
                    raise ImageError(
                        Status.UNDECODABLE, f"The film takes more than {limit:.0f} s to decode from {start_ms / 1000:.3f} s on."
                    )
            else:
                self._end_ms = -1
                self._check_end(start_ms, end_ms)
        except (av.FFmpegError, ValueError, MemoryError, OverflowError) as error:
            self.file.check()
            raise _undecodable(error) from error
        self.file.check()
        if self.damages:
            raise ImageError(Status.UNDECODABLE, f"The film is damaged ({self.damages} of its frames or more cannot be decoded).")

    def close(self) -> None:
        self._frames = self._waiting = None
        self._container.close()
        self.file.close()

    def last_packet_ms(self) -> int:
        """When the last frame is shown, found by reading the whole film without decoding it."""
        last = 0
        for packet in self._container.demux(self._stream):
            if packet.pts is not None:
                last = max(last, self._time_ms(packet.pts))
        self.file.check()
        return last

    def _open(self) -> tuple[Any, Any]:
        import av

        av.logging.set_level(None)
        options = {
            "format_whitelist": CONTAINERS,
            "protocol_whitelist": "none",
            "max_streams": "200",
            "probesize": str(8 << 20),
            "analyzeduration": str(5_000_000),
        }
        signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_FRAME)
        try:
            container = av.open(self.file, "r", container_options=options, metadata_errors="replace", io_open=_refuse, buffer_size=1 << 16)
            streams = [one for one in container.streams.video if not one.disposition & (_PICTURES)]
            if not streams:
                raise ImageError(Status.UNDECODABLE, "The film has no picture track.")
            stream = streams[0]
            self._check_stream(stream)
            for other in container.streams:
                if other.index != stream.index:
                    other.discard = av.stream.Discard.all
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(int(self.max_pixels))}
        except (av.FFmpegError, ValueError, MemoryError, OverflowError) as error:
            self.file.check()
            raise _undecodable(error) from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.file.check()
        self._start = container.start_time or 0
        return container, stream

    def _check_stream(self, stream: Any) -> None:
        context = stream.codec_context
        if context is None or context.name not in CODECS:
            name = "an unknown codec" if context is None else f"the codec {context.name}"
            raise ImageError(Status.UNDECODABLE, f"The film's pictures are in {name}, which is not read.")
        if not context.width or not context.height:
            raise ImageError(Status.UNDECODABLE, "The film's pictures have no size.")
        if context.width * context.height > self.max_pixels:
            limit = self.max_pixels / 1e6
            raise ImageError(
                Status.TOO_LARGE, f"The film's pictures have {context.width} x {context.height} pixels, the limit is {limit:g} megapixels."
            )
        if stream.time_base is None:
            raise ImageError(Status.UNDECODABLE, "The film's pictures have no times.")

    def _time_ms(self, pts: int) -> int:
        """As FFmpeg counts: from the beginning of the earliest track on."""
        time: Fraction = pts * self._stream.time_base - Fraction(self._start, 1_000_000)
        return round(time * 1000)

    def _from(self, start_ms: int) -> Iterator[tuple[int, Any]]:
        """The frames from then on, in the order that they are shown."""
        if self._end_ms == start_ms:  # just opened, or left there
            first, self._waiting = self._waiting, None
            self._frames = self._frames or self._decoded()
        else:
            first = self._seek(start_ms)
        if first and first[0] >= start_ms:
            yield first
        for time_ms, frame in self._frames or ():  # without `yield from`, which would close what the next stretch goes on with
            if time_ms >= start_ms:
                yield time_ms, frame

    def _seek(self, start_ms: int) -> tuple[int, Any] | None:
        """Go where the frames lead to the first one that is wanted; gives the first that was decoded."""
        steps = STEPS_BACK[self._container.format.name in WITHOUT_INDEX :]
        for step in (*steps, None):
            wanted = 0.0 if step is None else max(0.0, start_ms / 1000 - step)
            offset = int(Fraction(wanted) / self._stream.time_base) + int(Fraction(self._start, 1_000_000) / self._stream.time_base)
            self._container.seek(offset, stream=self._stream)
            self.damages, self.last_ms = 0, -1
            self._frames = self._decoded()
            first = next(self._frames, None)
            if not wanted or (first and first[0] <= start_ms):
                break
        self.damages = 0  # what came before the first whole frame lies in the stretch before
        return first

    def _decoded(self) -> Iterator[tuple[int, Any]]:
        """Frames with times that grow; what cannot be decoded is counted and left out."""
        import av

        firsts: dict[int, int] = {}  # by slot, the earliest frame that has come
        for packet in self._container.demux(self._stream):
            is_first = True
            if packet.pts is not None:
                time_ms = self._time_ms(packet.pts)
                slot = _slot(time_ms, self._rate)
                is_first = time_ms <= firsts.get(slot, time_ms)
                firsts = {near: first for near, first in firsts.items() if abs(near - slot) <= 1} | {
                    slot: min(time_ms, firsts.get(slot, time_ms))
                }
            # One that is not asked for is decoded only if others need it: a quarter of the work is saved.
            self._stream.codec_context.skip_frame = "DEFAULT" if is_first else "NONREF"
            signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_FRAME)
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self.damages += 1
                continue
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            for frame in frames:
                self.damages += frame.is_corrupt
                pts = frame.dts if frame.pts is None else frame.pts
                if pts is not None and (time_ms := self._time_ms(pts)) > self.last_ms:
                    self.last_ms = time_ms
                    yield time_ms, frame

    def _check_end(self, start_ms: int, end_ms: int | None) -> None:
        """The frames ended: whether they should have."""
        length = self.facts.seconds
        if not length:
            return
        tolerance = BREAK_SECONDS if self._is_exact else max(BREAK_SECONDS, LOOSE_BREAK * length)
        expected = min(length, length if end_ms is None else end_ms / 1000) - tolerance
        if max(self.last_ms, start_ms if self.last_ms < 0 else 0) / 1000 < expected:
            raise ImageError(Status.UNDECODABLE, f"The film breaks off: it should have {length:.3f} s.")

    def _picture(self, time_ms: int, frame: av.VideoFrame) -> Frame:
        if frame.width * frame.height > self.max_pixels:
            raise ImageError(Status.TOO_LARGE, f"The film has pictures of {frame.width} x {frame.height} pixels at {time_ms / 1000:g} s.")
        width, height = frame.width, frame.height
        reduction = max((n for n in _REDUCTIONS if max(width, height) / n >= self.enough_pixels), default=1)
        hdr = {"dst_color_trc": _BT709, "dst_color_primaries": _BT709} if frame.color_trc in _HDR else {}
        size = max(1, width // reduction), max(1, height // reduction)
        pixels = np.asarray(frame.reformat(*size, format="bgr24", threads=1, **hdr).to_ndarray(), np.uint8)
        turn = _TURNS.get(frame.rotation % 360)
        if turn is not None:
            pixels = np.asarray(cv2.rotate(pixels, turn), np.uint8)
            width, height = (height, width) if frame.rotation % 180 else (width, height)
        return Frame(time_ms, DecodedImage(pixels, width, height), scene_of(pixels))


def _slot(time_ms: int, rate: Fraction) -> int:
    """Half a millisecond is added, as times are rounded: 33 ms may be a thirtieth of a second."""
    return (2 * time_ms + 1) * rate.numerator // (2000 * rate.denominator)


_PICTURES = 0x0400 | 0x0800 | 0x100000  # FFmpeg's dispositions of covers, thumbnails and stills


def scene_of(pixels: UInt8Array) -> bytes:
    """How the colours of a picture (h, w, 3) share its area: 64 numbers that add up to about 255."""
    small = cv2.resize(pixels, (SCENE_SIDE, SCENE_SIDE), interpolation=cv2.INTER_AREA)
    levels = (small.reshape(-1, 3).astype(np.int32) * SCENE_BINS) >> 8
    bins = np.bincount(levels @ np.array([SCENE_BINS**2, SCENE_BINS, 1]), minlength=SCENE_BINS**3)
    return bytes(np.rint(bins * (255 / SCENE_SIDE**2)).astype(np.uint8))


def _refuse(url: str, flags: int, options: Any) -> Any:
    raise PermissionError(f"a film opens nothing else: {url[:100]}")


def _undecodable(error: Exception) -> ImageError:
    reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())[:200]
    return ImageError(Status.UNDECODABLE, f"The film cannot be decoded ({reason}).")
