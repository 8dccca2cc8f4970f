// Command kill ends what runs in a container with SIGKILL, from a pod that sees its node's processes (hostPID). The API has no such order: kubectl delete, with
// --grace-period=0 --force too, has the kubelet send SIGTERM first and wait for as long as the pod's own grace period.
package main

import (
	"fmt"
	"log"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	// Nothing but a whole id: part of one, or none, would be in the cgroups of others.
	if len(os.Args) != 2 || !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(os.Args[1]) {
		log.Fatal("usage: kill CONTAINER, by its id of 64 hexadecimal digits")
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		log.Fatal(err)
	}
	killed := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cgroup, err := os.ReadFile("/proc/" + e.Name() + "/cgroup")
		if err != nil || !strings.Contains(string(cgroup), os.Args[1]) {
			continue // what has ended meanwhile among them
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			log.Fatalf("kill process %d: %v", pid, err)
		}
		killed++
	}
	if killed == 0 {
		log.Fatal("no process is in the container")
	}
	fmt.Println("killed", killed)
}
