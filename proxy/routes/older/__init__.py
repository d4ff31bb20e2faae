"""What clients of older systems ask for: each endpoint reads its own body and writes its own form, and that is all."""
