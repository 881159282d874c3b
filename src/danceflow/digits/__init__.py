"""scikit-learn's handwritten digits as a small world of real images: files, prompts and scores."""
