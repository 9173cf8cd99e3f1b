"""The tables and figures of the paper: what they train and score, the ledger of it, and the report."""
