"""What a notebook shows of images and videos: thumbnails with the grid of patches the tower sees,
and contact sheets with the timestamps. No scripts; pictures are embedded PNGs.
"""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

from .notebook import box

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .vision_input import VisionInput

IMAGE_SIDE, FRAME_SIDE = 280, 112  # pixels on the screen, of the longer side
SHOWN_FRAMES = 24
_WAYS = ("right", "bottom")
FAINT = "opacity:.6;font-size:smaller"


def media_html(media: VisionInput) -> str:
    """One image or video by itself."""
    return box(media_figure(media, media.kind))


def media_figure(media: VisionInput, name: str) -> str:
    """Picture or contact sheet under `name`, with sizes and counts."""
    times, rows, cols = media.grid_thw
    height, width = media.source_size
    merge = media.settings.merge_size
    parts = [f"{width:,} x {height:,} pixels", f"{cols} x {rows} patches"]
    if media.kind == "video":
        seconds = f"{media.timestamps[0]:.1f} to {media.timestamps[-1]:.1f} s"
        parts += [f"{times} times ({seconds})", f"{media.tokens // times:,} tokens each"]
    parts.append(f"<b>{media.tokens:,} tokens</b>")
    if media.note:
        parts.append(f"<i>{escape(media.note)}</i>")
    caption = f"<div style='{FAINT}'>{escape(name)}: {', '.join(parts)}</div>"
    grid = (rows // merge, cols // merge)
    if media.kind == "image":
        picture = _picture(media.frames[0], IMAGE_SIDE, grid, merge)
        return f"<div style='margin:6px 0'>{picture}{caption}</div>"
    return f"<div style='margin:6px 0'>{_contact_sheet(media, grid)}{caption}</div>"


def _contact_sheet(media: VisionInput, grid: tuple[int, int]) -> str:
    """The first frame of each temporal patch, with the time that the model reads before it."""
    step, cells = media.settings.temporal_patch_size, []
    for index, seconds in list(enumerate(media.timestamps))[:SHOWN_FRAMES]:
        picture = _picture(media.frames[index * step], FRAME_SIDE, grid, media.settings.merge_size)
        time = f"<div style='{FAINT}'>&lt;{seconds:.1f} seconds&gt;</div>"
        cells.append(f"<div>{picture}{time}</div>")
    more = len(media.timestamps) - SHOWN_FRAMES
    if more > 0:
        cells.append(f"<div style='{FAINT};align-self:center'>... {more} more</div>")
    return f"<div style='display:flex;flex-wrap:wrap;gap:6px'>{''.join(cells)}</div>"


def _picture(frame: NDArray[np.uint8], side: int, grid: tuple[int, int], merge: int) -> str:
    """An <img> with a line around every token, and fainter ones around its patches."""
    height, width = frame.shape[:2]
    scale = side / max(height, width)
    size = f"width:{round(width * scale)}px;height:{round(height * scale)}px"
    grids = [(grid, "#fffa")]
    if max(grid) * merge * 6 < side:  # patches of at least 6 pixels
        grids.append(((grid[0] * merge, grid[1] * merge), "#fff4"))
    images, sizes = [], []
    for (rows, cols), colour in grids:
        images += [f"linear-gradient(to {way},{colour} 1px,#0000 1px)" for way in _WAYS]
        sizes += [f"{100 / cols:.4f}% {100 / rows:.4f}%"] * len(_WAYS)
    overlay = (
        f"position:absolute;inset:0;background-image:{','.join(images)};"
        f"background-size:{','.join(sizes)}"
    )
    source = f"data:image/png;base64,{_png(frame, side)}"
    pixelated = ";image-rendering:pixelated" if scale > 1 else ""
    return (
        f"<div style='position:relative;display:inline-block;{size}'>"
        f"<img src='{source}' style='{size}{pixelated}'><div style='{overlay}'></div></div>"
    )


def _png(frame: NDArray[np.uint8], side: int) -> str:
    """Base64 of a PNG no larger than it is shown."""
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
