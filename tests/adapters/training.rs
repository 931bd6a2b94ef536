//! Training of adapters on devices that run the shipped PTX.
