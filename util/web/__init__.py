"""util/web"""
