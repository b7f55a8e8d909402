"""The tabs of the page: one module each, with one `build`. No tab imports another."""
