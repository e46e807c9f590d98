"""What is measured, against which limit and which peer. Ratios within one run; never asserted in tests."""
