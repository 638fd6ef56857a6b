"""Inputs without labels: arrays, images, audio, the inputs of a named data set, or numbers drawn at random."""

from engine.data.unlabelled.forms import forms as forms
