"""``farm simulate``: a large farm on a virtual clock.

Real: the scheduler's pass, its planner, and every script of the queue on a real Valkey server,
which is handed the time (``virtual_queue.py``). Simulated: engines, which take as long as was
measured (``service.py``), the workers around them by the rules of ``farm_workers.worker``
(``worker.py``), machines that come and go (``fleet.py``), and what users submit (``workload.py``).
"""
