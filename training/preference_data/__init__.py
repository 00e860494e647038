"""Preference data in one schema: conversion, checks, size buckets, cached latents and batches."""
