"""The options of `tandem rollout set`."""

from typing import Annotated

import typer

Canary = Annotated[str, typer.Argument(metavar="RELEASE", help="The new release: a tag, or 'vision tag,language tag'.")]
Steps = Annotated[
    str,
    typer.Option(
        metavar="STEP,...", help="Weights in percent, each with its duration and minimum number of answers: 5:10m:200r."
    ),
]
Stable = Annotated[str, typer.Option(metavar="RELEASE", help="The current release. Default: the one in force.")]
ErrorRate = Annotated[
    float,
    typer.Option(
        min=0, metavar="PART", help="Maximum of the canary's error rate above stable's; 0 turns this check off."
    ),
]
EmptyRate = Annotated[float, typer.Option(min=0, metavar="PART", help="The same for empty answers.")]
FirstToken = Annotated[
    float,
    typer.Option(
        min=0, metavar="TIMES", help="Maximum of its time to first token, times stable's; 0 turns this check off."
    ),
]
InterToken = Annotated[float, typer.Option(min=0, metavar="TIMES", help="The same for the time between tokens.")]
MinRequests = Annotated[
    int, typer.Option(min=10, max=10**9, metavar="N", help="Answers of each release before anything is judged.")
]
OverdueS = Annotated[
    float,
    typer.Option(
        min=0, metavar="SECONDS", help="A request without any answer for so long counts as failed; 0 means 10."
    ),
]
QualityDrop = Annotated[
    float,
    typer.Option(
        "--max-quality-drop",
        min=0,
        metavar="PART",
        help="Maximum of the canary's share of wrong answers to the probes above stable's; 0 turns this check off.",
    ),
]
ProbeTimeoutS = Annotated[
    float,
    typer.Option(
        "--probe-timeout", min=0, metavar="SECONDS", help="Longest time for the probes before traffic; 0 means 300."
    ),
]
Repetition = Annotated[
    float, typer.Option(min=0, metavar="PART", help="The same for answers that end in endless repetition.")
]
WrongScript = Annotated[
    float, typer.Option(min=0, metavar="PART", help="The same for answers in another script than their question's.")
]
CutOff = Annotated[
    float, typer.Option(min=0, metavar="PART", help="The same for answers that end at the limit of their tokens.")
]
Dislikes = Annotated[
    float,
    typer.Option(min=0, metavar="PART", help="The same for disliked answers among the rated."),
]
Constraints = Annotated[
    float,
    typer.Option(min=0, metavar="PART", help="The same for answers that break a constraint which stable keeps."),
]
LengthRatio = Annotated[
    float,
    typer.Option(
        "--max-length-ratio",
        min=0,
        metavar="TIMES",
        help="Maximum of the mean length of answers, times stable's or the other way round; 0 turns this check off.",
    ),
]
LogprobDrop = Annotated[
    float,
    typer.Option(
        "--max-logprob-drop",
        min=0,
        metavar="NATS",
        help="Maximum that the mean log-probability of tokens is below stable's; 0 turns this check off.",
    ),
]
ProbesBefore = Annotated[
    int,
    typer.Option(
        "--probes-before-traffic",
        min=0,
        metavar="N",
        help="Most probes to ask before traffic; the others follow in the steps. 0 asks all.",
    ),
]
Shadow = Annotated[
    float,
    typer.Option(
        min=0,
        max=100,
        metavar="PERCENT",
        help="Percent of stable's requests to mirror to the canary.",
    ),
]
ShadowCanary = Annotated[
    float,
    typer.Option(
        "--shadow-canary",
        min=0,
        max=100,
        metavar="PERCENT",
        help="Percent of the canary's requests to mirror to stable.",
    ),
]
