"""The bundled demo, its safe model beside the original, on a page: as a Space, which names the address,
or by `python app.py`."""

import os
from pathlib import Path

from peft import PeftModel

from safe_clip import load_clip, load_processor
from safe_clip.app import Settings, serve
from safe_clip.app.ladder import Opened

adapter = Path(__file__).parent / "adapter"
safe = PeftModel.from_pretrained(load_clip("demo"), adapter).merge_and_unload()
settings = Settings(
    max_images=int(os.environ.get("MAX_IMAGES", "2000")),
    host=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
    port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
)
serve(Opened(safe, load_processor("demo"), "safe-clip"), "demo", settings=settings)
