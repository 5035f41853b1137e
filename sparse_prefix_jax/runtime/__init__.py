"""What compiles or allocates, and knows no token's meaning.

Plans of packed chunks, the compiled programs, pools and their memory order.
"""
