"""Tasks: real data sets by name, the user's own files, exact synthetic generators."""

from etude.data.batching import Batches as Batches
from etude.data.batching import Sampled as Sampled
from etude.data.batching import sampled as sampled
from etude.data.cache import cached as cached
from etude.data.images import ImageSet as ImageSet
from etude.data.images import load_images as load_images
from etude.data.progress import track as track
from etude.data.randomness import fork_global as fork_global
from etude.data.randomness import numpy_stream as numpy_stream
from etude.data.randomness import seeded_build as seeded_build
from etude.data.randomness import stream as stream
from etude.data.sources import SourceFiles as SourceFiles
from etude.data.sources import available as available
from etude.data.sources import fetch as fetch
from etude.data.sources import verify as verify
from etude.data.tables import TableSet as TableSet
from etude.data.tasks import Split as Split
from etude.data.tasks import Task as Task
from etude.data.tasks import split as split
from etude.data.user import load_user as load_user
