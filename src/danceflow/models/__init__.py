"""Model families: one frozen-parts object per family that turns networks into velocity fields."""
