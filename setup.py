"""Packaging: the repository root *is* the package ``wavcse`` (and the Hub model repository)."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
SUBPACKAGES = [
    "data",
    "data.synthetic",
    "data.synthetic.twins",
    "data.corpora",
    "reports",
    "hub",
    "tools",
    "pretraining",
    "settings",
    "steps",
    "training",
    "search",
    "eval",
    "eval.tasks",
    "eval.baselines",
    "eval.metrics",
    "studies",
    "analysis",
    "analysis.analyses",
    "finetuning",
    "retrieval",
    "pca",
    "words",
    "app",
    "doors",
]

EVAL = ["scikit-learn>=1.5", "scipy>=1.13", "matplotlib>=3.9", "markdown>=3.6", "jiwer>=4"]
SEARCH = ["optuna>=4", "matplotlib>=3.9", "markdown>=3.6", "scikit-learn>=1.5", "scipy>=1.13"]
BASELINES = {  # extra -> what a baseline of `wavcse eval` needs (eval/baselines/)
    "resemblyzer": ["resemblyzer>=0.1.4", "setuptools<81"],  # webrtcvad, which it needs, imports pkg_resources
    "egemaps": ["opensmile>=2.5"],  # for research only
}
ANALYSIS = [*EVAL, "captum>=0.7"]
HUB = ["datasets>=4"]
DOORS = {  # extra -> the libraries of one door (docs/doors.md)
    "sentence-transformers": ["sentence-transformers>=5.4"],
    "peft": ["peft>=0.17"],
    "onnx": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],
    "index": ["faiss-cpu>=1.8", "usearch>=2.16"],
    "map": ["scikit-learn>=1.5", "umap-learn>=0.5.7"],
    "ray": ["ray[data]>=2.40"],
    "spark": ["pyspark>=3.5"],
    "mteb": ["mteb>=2.26"],
    "app": ["gradio>=6"],
}
DEV = [
    "pytest>=8",
    "pytest-xdist>=3.7",
    "ruff>=0.6",
    "parameterized>=0.9",
    "audmetric>=1.4",
    "evaluate>=0.4.6",
    "tensorboard>=2.17",
]


class BuildPackage(build_py):
    """Of the files in the root, which is the package, these are not modules of it."""

    NO_MODULES = ("setup", "handler", "wavcse_cli")  # the console script is a module of its own, beside the package

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if package != "wavcse" or entry[1] not in self.NO_MODULES]


setup(
    name="wavcse",
    version="0.1.0",
    description="Fixed-size, unified speech embeddings: one vector per clip for words, speakers and emotions",
    long_description=README.partition("\n---\n")[2] if README.startswith("---\n") else README,  # without the card's header
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=["wavcse", *(f"wavcse.{name}" for name in SUBPACKAGES)],
    package_dir={"wavcse": "."},
    py_modules=["wavcse_cli"],
    package_data={
        "wavcse": ["conf/*.yaml", "conf/paper/*.yaml", "eval/metrics/*/*.py", "retrieval/*.html", "LICENSE", "py.typed"]
    },
    cmdclass={"build_py": BuildPackage},
    install_requires=[
        "torch>=2.6",
        "transformers>=5.0",
        "accelerate>=1.2",
        "safetensors>=0.4.3",
        "huggingface_hub>=1.4",
        "numpy>=1.26",
        "pandas>=2.2",
        "pyarrow>=15",
        "psutil>=5.9",
        "pyyaml>=6",
        "soundfile>=0.12",
        "soxr>=0.4",
        "tqdm>=4.66",
        "espeakng-loader>=0.2.4",
    ],
    extras_require={
        **DOORS,
        **BASELINES,
        "doors": sorted({library for libraries in DOORS.values() for library in libraries}),
        "eval": EVAL,
        "analysis": ANALYSIS,
        "search": SEARCH,
        "hub": HUB,
        "dev": [*DEV, *EVAL, *SEARCH, *HUB],
    },
    entry_points={"console_scripts": ["wavcse=wavcse_cli:main"]},
)
