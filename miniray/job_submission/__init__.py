"""Programs that the cluster runs by itself: `JobSubmissionClient` and what it returns, named as in Ray."""

from miniray.job_submission.client import JobSubmissionClient
from miniray.job_submission.records import DriverInfo, JobDetails, JobInfo, JobStatus, JobType

__all__ = ["DriverInfo", "JobDetails", "JobInfo", "JobStatus", "JobSubmissionClient", "JobType"]
