"""Images that a generator samples for prompts, as files. An interrupted run resumes at the first missing prompt."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modeling_dina.files import Journal, atomic_path
from modeling_dina.isolation import PROBE_PROMPT, isolate_failures
from modeling_dina.noising_dina import seeded_generator


def sample_images(
    pipeline,
    prompts: Sequence[str],
    folder: Path,
    settings: dict[str, Any],
    *,
    count: int,
    seed: int,
    call: dict[str, Any],
    progress: Callable[[int, int], None],
) -> tuple[list[tuple[str, str]], list[dict[str, str]]]:
    """
    Sample images for every prompt.

    The noise of a sample depends only on the seed, the index of its prompt and its own index.

    Args:
        pipeline: a text-to-image pipeline of diffusers.
        prompts: P prompts.
        folder: folder for the PNG files, in `folder`/images, and for the journal, `folder`/samples.jsonl.
        settings: what else the images depend on, such as the pipeline's source.
        count: number of images per prompt, sampled together.
        seed: seed of the noise.
        call: further arguments of the pipeline, such as `num_inference_steps`.
        progress: called with the numbers of finished and of all prompts.

    Returns:
        Prompt and path of every image, and {"name", "error"} of the prompts that failed.

    Raises:
        ValueError: the journal belongs to a run with other settings, or the pipeline fails for every prompt.
    """
    everything = {"prompts": list(prompts), "count": count, "seed": seed, "call": call, **settings}
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "samples.jsonl", everything)
    files: dict[int, list[str]] = {record["prompt"]: record["files"] for record in journal.records}
    failures: list[dict[str, str]] = []

    def sample(prompt: str, index: int) -> list[str]:
        noise = [seeded_generator(seed, index, number) for number in range(count)]
        names = [f"{index:06d}-{number:02d}.png" for number in range(count)]
        found = pipeline(prompt, num_images_per_prompt=count, generator=noise, **call).images
        for name, image in zip(names, found, strict=True):
            with atomic_path(folder / "images" / name) as partial:
                image.save(partial)
        return names

    def probe() -> None:
        pipeline(PROBE_PROMPT, num_images_per_prompt=1, **call)

    for index, prompt in enumerate(prompts):
        progress(index, len(prompts))
        if index in files:
            continue
        sampled, failed = isolate_failures(
            lambda batch: [sample(prompts[each], each) for each in batch], [index], probe
        )
        for _, names in sampled:
            journal.append({"prompt": index, "files": names})
            files[index] = names
        failures += [{"name": f"prompt {index}: {prompt}", "error": error} for _, error in failed]
    progress(len(prompts), len(prompts))
    # Absolute paths, because the pairs refer to these files.
    rows = [
        (prompts[index], str((folder / "images" / name).absolute()))
        for index in sorted(files)
        for name in files[index]
    ]
    return rows, failures
