"""Preference data of every source in one form: conversion, checks, size buckets, cached latents and batches."""
