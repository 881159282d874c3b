"""The studio: one page where a designer makes a picture and changes it, step by step."""
