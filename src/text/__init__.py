"""Text that becomes tokens: a user's words as words, a checkpoint's chat template within bounds."""
