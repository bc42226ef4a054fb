"""benchmarks/report"""
