"""Model providers behind one model port."""
