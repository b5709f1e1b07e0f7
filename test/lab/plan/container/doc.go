// Package container derives from a container's spec what its process gets: the environment, and the probes.
package container
