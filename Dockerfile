# Mask2CT on the CPU.
#
#   docker build -t mask2ct .
#   docker run --rm -e SMOKE=1 -v "$PWD/demo:/opt/mask2ct/demo" mask2ct bash scripts/demo.sh
#   docker run --rm -v "$PWD:/work" mask2ct python test.py --name /work/run1.zip --mask /work/lung.nii.gz \
#       --prompt "Patient age: 60." --out /work/generated.nii.gz
#
# Patients' data stay outside: .dockerignore lets nothing but the code into the image.
FROM python:3.11-slim

WORKDIR /opt/mask2ct
ENV VENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

# What changes rarely comes first, so that an edit of the code does not install torch again.
COPY requirements.txt constraints.txt ./
COPY scripts/setup_env.sh scripts/
RUN bash scripts/setup_env.sh requirements.txt

COPY . .
# Runs and results of a user without rights to the rest.
RUN useradd --create-home --uid 1000 mask2ct \
    && mkdir -p checkpoints results demo /work \
    && chown -R mask2ct checkpoints results demo /work
USER mask2ct

# Nothing is downloaded or reported at run time.
ENV HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    MPLBACKEND=Agg \
    PYTHONUNBUFFERED=1

CMD ["python", "test.py", "--help"]
