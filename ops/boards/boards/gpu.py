"""Board: the GPUs, as the workers see theirs and as NVIDIA's DCGM exporter sees the nodes' where it is installed."""

from boards.grafana import Board, Panel, Query, Row, Variable
from boards.queries import NAMESPACE, WORKER, rate, ratio

MODEL = Variable(name="model", label="Model", metric='pagoda_engine_up{namespace=~"$namespace"}', of_label="model_name")
NODE = Variable(name="node", label="Node", metric="DCGM_FI_DEV_GPU_UTIL", of_label="Hostname")
ON_NODE = 'Hostname=~"$node"'


def own(metric: str) -> str:
    return f"max by (pod, gpu) ({metric}{{{WORKER}}})"


def dcgm(metric: str) -> str:
    return f"max by (Hostname, gpu) ({metric}{{{ON_NODE}}})"


WORKERS = Row(
    "As workers see theirs",
    (
        Panel(
            title="Memory in use",
            description="Flat, because the KV cache is taken as a whole at the start. How full that is: the engine board.",
            unit="percentunit",
            most=1,
            queries=[Query(ratio(own("pagoda_gpu_memory_used_bytes"), own("pagoda_gpu_memory_total_bytes")), "{{pod}} GPU {{gpu}}")],
        ),
        Panel(
            title="Utilisation",
            description="Share of the time in which any kernel ran: says that the GPU was not idle, not that it was used well.",
            unit="percentunit",
            most=1,
            queries=[Query(own("pagoda_gpu_utilization_ratio"), "{{pod}} GPU {{gpu}}")],
        ),
        Panel(
            title="Power",
            description="Drawn now.",
            unit="watt",
            queries=[Query(own("pagoda_gpu_power_watts"), "{{pod}} GPU {{gpu}}")],
        ),
        Panel(
            title="Output tokens per joule",
            description="What the energy buys. Falls with small batches.",
            unit="short",
            decimals=2,
            queries=[
                Query(
                    ratio(
                        rate("vllm:generation_tokens_total", WORKER, "model_name"),
                        f"sum by (model_name) (pagoda_gpu_power_watts{{{WORKER}}})",
                    ),
                    "{{model_name}}",
                )
            ],
        ),
    ),
)
NODES = Row(
    "As DCGM sees the nodes'",
    (
        Panel(
            title="Utilisation",
            description="DCGM_FI_DEV_GPU_UTIL: any kernel ran.",
            unit="percent",
            most=100,
            queries=[Query(dcgm("DCGM_FI_DEV_GPU_UTIL"), "{{Hostname}} GPU {{gpu}}")],
        ),
        Panel(
            title="Memory copies",
            description="Share of the time in which memory was read or written.",
            unit="percent",
            most=100,
            queries=[Query(dcgm("DCGM_FI_DEV_MEM_COPY_UTIL"), "{{Hostname}} GPU {{gpu}}")],
        ),
        Panel(
            title="Memory in use",
            description="Framebuffer, in MiB as the driver counts.",
            unit="mbytes",
            queries=[Query(dcgm("DCGM_FI_DEV_FB_USED"), "{{Hostname}} GPU {{gpu}}")],
        ),
        Panel(
            title="Power",
            description="From the energy counter, so that peaks between two scrapes count.",
            unit="watt",
            queries=[
                Query(
                    f"sum by (Hostname, gpu) (rate(DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{ON_NODE}}}[$__rate_interval])) / 1000",
                    "{{Hostname}} GPU {{gpu}}",
                )
            ],
        ),
        Panel(
            title="Temperature",
            description="Near the limit of the card its clocks fall, and tokens with them.",
            unit="celsius",
            queries=[Query(dcgm("DCGM_FI_DEV_GPU_TEMP"), "{{Hostname}} GPU {{gpu}}")],
        ),
        Panel(
            title="SM clock",
            description="In MHz. Below the usual under load: power or heat throttles.",
            unit="suffix: MHz",
            queries=[Query(dcgm("DCGM_FI_DEV_SM_CLOCK"), "{{Hostname}} GPU {{gpu}}")],
        ),
        Panel(
            title="Last XID error",
            description="The number of the last error of the driver; 0 is none. 48, 63, 64, 79, 94, 95: take the node out.",
            unit="none",
            queries=[Query(dcgm("DCGM_FI_DEV_XID_ERRORS"), "{{Hostname}} GPU {{gpu}}")],
        ),
        Panel(
            title="PCIe replays",
            description="Repeated transfers: a card or a riser that does not sit well.",
            unit="suffix: /s",
            queries=[
                Query(
                    f"sum by (Hostname, gpu) (rate(DCGM_FI_DEV_PCIE_REPLAY_COUNTER{{{ON_NODE}}}[$__rate_interval]))",
                    "{{Hostname}} GPU {{gpu}}",
                )
            ],
        ),
    ),
)

BOARD = Board(
    uid="pagoda-gpu",
    title="Pagoda / GPU",
    description="Are the GPUs busy, full, hot or broken?",
    variables=(NAMESPACE, MODEL, NODE),
    rows=(WORKERS, NODES),
)
