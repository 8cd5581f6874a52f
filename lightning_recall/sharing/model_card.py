"""Text of a model card: scores, data, recipe, picture, and how to load the model."""

import html
from collections.abc import Mapping
from typing import Any

from lightning_recall.sharing.building import TRUSTED, is_in
from lightning_recall.sharing.settings import ARGUMENTS, CLASS

TEMPLATE = """---
{{ card_data }}
---

# {{ title }}
An image-retrieval model: it maps an image to an embedding; images of the same class have a large cosine similarity.
Trained with lightning_recall.

## Use
```python
from lightning_recall import RetrievalModule

module = RetrievalModule.from_pretrained("{{ model_id }}"{% for name in passed %}, {{ name }}=...{% endfor %})
{% if has_preprocessing %}embedding = module(module.preprocess("photo.jpg")[None]){% else -%}
embeddings = module(images)  # (b, C, H, W), preprocessed as in training{% endif %}
```
{% for name, rows in tables.items() %}
## {{ name }}
| | |
|---|---|
{% for key, value in rows.items() -%}
| {{ key }} | {{ value }} |
{% endfor %}{% endfor %}
{%- if picture %}
## Retrieved images
Test queries, each with the most similar images of the test split.

![Retrieved images]({{ picture }})
{% endif %}"""


def card_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `TEMPLATE` that follow from a config; see `lightning_recall.modules.shared_module.SharedModule`."""
    arguments = config["model"]["init_args"] or {}
    return {
        "tables": card_tables(config),
        "passed": [name for name, value in arguments.items() if needs_code(value)],
        "has_preprocessing": "mode" in (config.get("preprocessing") or {}),
    }


def needs_code(settings: Any) -> bool:
    """Whether settings hold a module whose class `build` refuses, or whose arguments are unknown."""
    if isinstance(settings, list):
        return any(map(needs_code, settings))
    if not isinstance(settings, dict) or CLASS not in settings:
        return False
    arguments = settings[ARGUMENTS]
    return arguments is None or not is_in(settings[CLASS], TRUSTED) or any(map(needs_code, arguments.values()))


def card_tables(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Heading -> rows of the tables of a card; tables without rows are left out.

    Args:
        config: the content of config.json.
    """
    record, threshold = config.get("training") or {}, config.get("similarity_threshold") or {}
    arguments = config["model"]["init_args"] or {}
    data = {name: count_text(value) for name, value in (record.get("data") or {}).items()}
    parts = {"optimizer": "optimizer", "scheduler": "lr_scheduler", "loss": "loss", "mixup": "mixup"}
    recipe = {name: code_text(arguments.get(argument)) for name, argument in parts.items()}
    tables = {
        "Scores": {key.removeprefix("test/"): f"{value:.4g}" for key, value in (record.get("scores") or {}).items()},
        "Data": data,
        "Recipe": recipe | (record.get("recipe") or {}),
        "Network": embedder_rows(arguments.get("embedder")),
        "Preprocessing": config.get("preprocessing") or {},
        "Similarity threshold": threshold,
        "Versions": config["versions"],
    }
    cleaned = {
        title: {cell(name): cell(value) for name, value in rows.items() if value not in (None, "")}
        for title, rows in tables.items()
    }
    return {title: rows for title, rows in cleaned.items() if rows}


def cell(value: Any) -> str:
    """A value as the text of a cell: one line, without HTML and without the column separator."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def count_text(value: Any) -> str:
    """{"images": 1200, "classes": 30} -> "1,200 images, 30 classes"."""
    return ", ".join(f"{number:,} {name}" for name, number in value.items()) if isinstance(value, dict) else str(value)


def code_text(settings: Any) -> str:
    """A module or function in a config as one line: "RecallAtKLoss(ks=[1, 2])"; "" for None."""
    if isinstance(settings, dict) and "code" in settings:
        return str(settings["code"])
    if not isinstance(settings, dict):
        return "" if settings is None else str(settings)
    if "class_path" not in settings:
        return str(dict(sorted(settings.items())))
    arguments = (settings["init_args"] or {}).items()
    shown = ", ".join(f"{name}={nested_text(value)}" for name, value in arguments if value is not None)
    return f"{settings['class_path'].rpartition('.')[2]}({shown})"


def nested_text(value: Any) -> str:
    """`code_text` of a value, or of each in a list."""
    if isinstance(value, list):
        return f"[{', '.join(map(nested_text, value))}]"
    return code_text(value) if isinstance(value, dict) else str(value)


def embedder_rows(settings: Any) -> dict[str, Any]:
    """Class and arguments of an embedder."""
    if not isinstance(settings, dict):
        return {}
    return {
        "class": settings["class_path"],
        **{
            name: nested_text(value)
            for name, value in (settings["init_args"] or {}).items()
            if value is not None and name != "pretrained"
        },
    }
