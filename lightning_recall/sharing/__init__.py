"""What a saved model consists of: settings that build it again, weights, and a model card. Plain torch."""

from lightning_recall.sharing.building import build
from lightning_recall.sharing.settings import settings_of

__all__ = ["build", "settings_of"]
