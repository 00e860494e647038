"""Real runs of the reward trainer in processes of their own, on pairs of the small world."""

from pathlib import Path

import pytest

from tests.processes import Worker, two_ranks

ROOT = Path(__file__).parents[3]
EMBEDDED = ROOT / "modeling_dina" / "tiny"


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory):
    """96 pairs of rendered pictures."""
    from training.encode_world import write_rendered_pairs

    folder = tmp_path_factory.mktemp("pairs")
    write_rendered_pairs(folder, str(EMBEDDED), groups=16, seed=1)
    return folder


@pytest.fixture
def arguments(pairs_folder, tmp_path):
    """Flags of a run of eight updates on one block of the embedded generator, with a checkpoint every second."""
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
base_model: {EMBEDDED}
reward_config: {{num_layers: 1, visual_layers: [1], text_layers: [1], head_width: 16, max_sequence_length: 14}}
backbone: full
loss: log_likelihood
train_data: ["{pairs_folder}"]
output_dir: {tmp_path / "run"}
use_cpu: true
max_steps: 8
save_steps: 2
logging_steps: 1
per_device_train_batch_size: 16
learning_rate: 1.0e-3
lr_scheduler_type: linear
warmup_steps: 4
ema_decay: 0.9
report_to: none
disable_tqdm: true
"""
    )
    return ["--config", str(config)]


@pytest.fixture
def output_dir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def train(arguments):
    """Trains in this process."""
    from training.train_reward import main

    return lambda *flags: main([*arguments, *map(str, flags)])


@pytest.fixture
def launch(arguments):
    """Starts a training process with environment variables; what it prints can be read from `stdout`."""
    running = []

    def start(*flags, **variables):
        variables["OMP_NUM_THREADS"] = "1"
        process = Worker("training.train_reward", *arguments, *flags, environment=variables)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def launch_two(launch):
    """Starts two processes of one run."""

    def start(*flags):
        return [launch(*flags, **variables) for variables in two_ranks()]

    return start
