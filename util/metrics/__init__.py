"""util/metrics"""
