"""What everything that touches a run agrees on. Standard library and boto3 only: Lambda functions stage this folder."""
