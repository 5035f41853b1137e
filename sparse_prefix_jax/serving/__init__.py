"""Order in time: prefill, decode, and what is measured of them."""
