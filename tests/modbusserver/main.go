// A Modbus TCP server whose registers are in the program that started it.
//
// It writes a line "ready" once it listens, then each request as a line of JSON, and reads the
// answers as lines of JSON in any order. It ends when its input does.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"sync"

	"github.com/simonvetter/modbus"
)

type request struct {
	ID      int      `json:"id"`
	Unit    uint8    `json:"unit"`
	Table   string   `json:"table"`
	Address uint16   `json:"address"`
	Count   uint16   `json:"count"`
	Values  []uint16 `json:"values"` // null for a read
}

type answer struct {
	ID        int      `json:"id"`
	Values    []uint16 `json:"values"`
	Exception int      `json:"exception"`
}

var exceptions = map[int]error{
	1:  modbus.ErrIllegalFunction,
	2:  modbus.ErrIllegalDataAddress,
	3:  modbus.ErrIllegalDataValue,
	4:  modbus.ErrServerDeviceFailure,
	5:  modbus.ErrAcknowledge,
	6:  modbus.ErrServerDeviceBusy,
	8:  modbus.ErrMemoryParityError,
	10: modbus.ErrGWPathUnavailable,
	11: modbus.ErrGWTargetFailedToRespond,
}

type handler struct {
	mutex   sync.Mutex
	last    int
	waiting map[int]chan answer
}

func (h *handler) ask(r request) ([]uint16, error) {
	reply := make(chan answer, 1)
	h.mutex.Lock()
	h.last++
	r.ID = h.last
	h.waiting[r.ID] = reply
	line, _ := json.Marshal(r)
	fmt.Println(string(line))
	h.mutex.Unlock()
	got := <-reply
	if got.Exception != 0 {
		return nil, exceptions[got.Exception]
	}
	return got.Values, nil
}

func (h *handler) take(got answer) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.waiting[got.ID] <- got
	delete(h.waiting, got.ID)
}

func (h *handler) HandleHoldingRegisters(r *modbus.HoldingRegistersRequest) ([]uint16, error) {
	values := r.Args
	if !r.IsWrite {
		values = nil
	}
	return h.ask(request{Unit: r.UnitId, Table: "holding", Address: r.Addr, Count: r.Quantity, Values: values})
}

func (h *handler) HandleInputRegisters(r *modbus.InputRegistersRequest) ([]uint16, error) {
	return h.ask(request{Unit: r.UnitId, Table: "input", Address: r.Addr, Count: r.Quantity})
}

func (h *handler) HandleCoils(*modbus.CoilsRequest) ([]bool, error) {
	return nil, modbus.ErrIllegalFunction
}

func (h *handler) HandleDiscreteInputs(*modbus.DiscreteInputsRequest) ([]bool, error) {
	return nil, modbus.ErrIllegalFunction
}

func main() {
	h := &handler{waiting: map[int]chan answer{}}
	server, err := modbus.NewServer(&modbus.ServerConfiguration{
		URL:    "tcp://" + os.Args[1],
		Logger: log.New(io.Discard, "", 0),
	}, h)
	if err == nil {
		err = server.Start()
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var got answer
		if err := json.Unmarshal(lines.Bytes(), &got); err != nil {
			log.Fatal(err)
		}
		h.take(got)
	}
}
