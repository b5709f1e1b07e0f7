// Package container says of a container what its process gets: its environment, and how it is probed.
package container
