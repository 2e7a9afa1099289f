"""Position calibrators: where tokens stand for the cross-modal attention."""
