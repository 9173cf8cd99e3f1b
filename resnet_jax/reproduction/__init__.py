"""The paper's tables and figures: what each trains and scores, the records of it, and the report."""
