"""Distortions: what makes a distorted branch differ from the original one."""
