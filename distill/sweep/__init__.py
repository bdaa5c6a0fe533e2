"""Many runs by one command: which jobs a sweep has, what became of each, and what they say together.

python -m distill -m key=a,b …       runs them
python -m distill.sweep FOLDER       tells of them
"""
