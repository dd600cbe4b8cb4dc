"""Few-shot learning as a bilevel problem: episodes, learners and their evaluation."""
