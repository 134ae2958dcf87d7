"""The worker: leases tasks, drives the engines, hands pictures to the publisher."""
