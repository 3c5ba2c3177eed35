"""Parameters to numbers: graders, the gold rater, dialogue and text evaluation."""
