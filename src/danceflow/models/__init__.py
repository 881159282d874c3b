"""Model families: one frozen-parts object per family that turns networks into velocity fields."""

from danceflow.models.deferred import defer

defer("bitsandbytes", "torchao")
